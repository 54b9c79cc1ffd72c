"""Random changes of genomes, and genomes at random."""
