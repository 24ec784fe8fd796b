"""Emoji drawn in several styles: Iconify's icon sets, fetched with npm, named alike across styles, rendered."""
