"""Pages of the pool in SGLang's storage backends, and the threads that read and write them."""
