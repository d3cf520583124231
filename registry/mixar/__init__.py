"""mixar: what the command line does, in Python."""
