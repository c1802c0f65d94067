"""GGUF files, the format of llama.cpp: their weights, configuration and tokenizer in our terms."""
