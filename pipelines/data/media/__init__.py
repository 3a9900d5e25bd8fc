"""From a name in a row to pixels: found within the media root (`root`), decoded as image or video.

Input is not trusted: whatever is wrong with it becomes an error of its row.
"""
