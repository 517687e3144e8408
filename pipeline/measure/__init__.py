"""What a model costs: parameters, MACs, memory, latency, executed ARM instructions."""
