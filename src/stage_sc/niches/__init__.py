"""Niches and domains: the tree settles on the cells of a call, domains are found, and every cell is assigned."""

from stage_sc.niches._assign import Partition, assign_labels, find_partition
from stage_sc.niches._domains import Domains, find_domains
from stage_sc.niches._settle import settle_tree

__all__ = ["Domains", "Partition", "assign_labels", "find_domains", "find_partition", "settle_tree"]
