"""How line images are distorted in training, each kind of distortion a pure function of its parameters."""
