"""Text-to-image models behind one interface: predictions, trajectories and text projections, whatever the network."""
