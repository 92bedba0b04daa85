"""The keeper: keeps the documents that several people edit at once, with their whole history."""
