"""One port: the listener, the Quart-Trio application, and the handlers that serve REST whatever carries them."""
