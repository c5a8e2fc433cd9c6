"""How datasets and versions leave a store and enter another: archives, exports, readers."""
