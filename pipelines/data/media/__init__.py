"""From what a row names to pixels: found within the media root (`root`), decoded as an image or a video.

What comes in is not trusted: whatever is wrong with it is an error of that row which says so.
"""
