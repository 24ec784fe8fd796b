"""Zero-shot evaluation: `zeroshot` classifies one data set, `metrics` sums up, `node` runs it on a project folder."""
