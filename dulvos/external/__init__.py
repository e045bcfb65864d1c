"""What others keep, in their forms: training collections, downloads, released weights, YouTube-VOS and its server, DAVIS' score files."""
