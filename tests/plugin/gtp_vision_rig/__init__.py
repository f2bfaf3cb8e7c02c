"""A plug-in of gtp-vision, as a lab might write it for its robot."""
