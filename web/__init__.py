"""A page that listens in the visitor's own browser; any server of plain files will do for it."""
