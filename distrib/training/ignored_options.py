"""Options that a run has no use for beside its others, which their user may not have expected."""

from __future__ import annotations

from distrib.config.learning import Learning, Train


def ignored_options(options: Learning) -> list[str]:
    """A sentence for each option that is not as by default and changes nothing."""
    sentences = []
    if options.log_dir is not None and options.pl_logger is None:
        sentences.append("--log-dir changes nothing without --logger.")
    if options.augment_strength != 1 and not options.augment:
        sentences.append(
            f"--augment-strength {options.augment_strength:g} changes nothing without --augment."
        )
    if isinstance(options, Train):
        sentences += _of_training(options)
    return sentences


def _of_training(options: Train) -> list[str]:
    sentences = []
    if options.base_dir != "auto" and not options.bidi_reordering:
        sentences.append(f"--base-dir {options.base_dir} changes nothing with --no-reorder.")
    # A run that is gone on with has all that it began with.
    if options.load is not None or options.resume is not None:
        return sentences
    if options.resize != "fail":
        sentences.append(f"--resize {options.resize} changes nothing without --load.")
    if options.freeze_backbone:
        sentences.append(
            f"--freeze-backbone {options.freeze_backbone} without --load keeps layers as they are that have "
            "learned nothing yet."
        )
    return sentences
