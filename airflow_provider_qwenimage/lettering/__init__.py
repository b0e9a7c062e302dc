"""Texts in pictures: any script, with the fonts of the machine. Contact sheets and the gallery have such pictures."""
