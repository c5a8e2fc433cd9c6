"""Audits of a store: integrity, lineage, differences, reproduction and signatures."""
