"""Moving data between stores and other tools: archives, exports, readers."""
