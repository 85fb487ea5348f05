"""Data sets: names, colours, and the code that prepares and checks them."""
