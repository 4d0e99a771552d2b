"""Testing trained networks by the paper's protocols; the networks beside its figures."""
