"""What every room shares: records, protocols, config, images, the chat encoding and the shapes world."""
