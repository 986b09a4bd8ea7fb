"""Other libraries' interfaces, under their modules' names: a program changes one import."""
