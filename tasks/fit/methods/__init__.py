"""The methods of the node ``fit``, one file each."""
