"""The registry of mixar: hooks, parts, recipes, assembly and the command line."""
