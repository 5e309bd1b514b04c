"""The core's data side (torch, numpy): tokenizer, data set, loaders."""
