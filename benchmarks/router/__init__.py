"""What SGLang's router makes of prefix caches: hit rates over two replicas, by routing policy."""
