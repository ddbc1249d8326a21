"""A client of the live log over WebSocket: `fluxora tail`, and the example of how to follow without a loss."""
