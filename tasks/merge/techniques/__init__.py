"""The merging techniques, one file a family; each is picked up by its being here."""
