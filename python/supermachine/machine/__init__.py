"""Virtual machines: the class, its starts, pools."""
