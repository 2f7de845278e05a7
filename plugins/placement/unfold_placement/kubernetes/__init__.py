"""The Kubernetes backend: policies decide, resources and scheduling gates express it, and kube-scheduler binds."""
