"""The gateway: the contract as HTTP and JSON, and the web page. It keeps nothing; any number of them may run."""
