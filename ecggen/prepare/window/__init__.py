"""Stage window: records cut into windows, patients into splits."""
