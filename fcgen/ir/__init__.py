"""The two IRs: types, layouts, ops, verification and text."""
