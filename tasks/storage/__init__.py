"""Where bytes are kept, whatever they mean: DVC cache, git, remotes, locks and files written atomically."""
