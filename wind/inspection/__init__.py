"""Inspection: reading the prompts and responses of a version, one by one.

`index` has a row of numbers for each prompt, `query` searches, filters and sorts them by the fields
that `fields` lists, `detail` reads everything about one prompt by key, and `notes` keeps what a
reader writes beside it. `wind ui`, the bundle of `wind report`, and `wind browse` show the same.
"""
