"""Questions that several passes ask of a program: no pass, and nothing is changed here."""
