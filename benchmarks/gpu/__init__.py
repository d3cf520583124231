"""What a GPU does with this project, measured in one call: see `__main__`."""
