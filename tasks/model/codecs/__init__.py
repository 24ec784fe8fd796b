"""Codecs of experts, one file each; `tasks.model.codec` says what one is, `tasks.model.coded` what it writes."""
