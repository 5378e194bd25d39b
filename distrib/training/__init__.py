"""Lightning modules, optimisers, stopping, metrics, evaluation."""
