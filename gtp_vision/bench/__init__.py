"""What training, acting, loading and serving cost: `gtp-vision bench ...`."""
