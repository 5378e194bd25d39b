"""Learning from line images alone: predicting hidden columns of the feature map."""
