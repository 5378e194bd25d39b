"""VGSL grammar to network, codec, CTC decoding, weights files in kraken's layout."""
