"""The encoder as plain torch modules, and its way to and from the Hugging Face layout."""
