"""What objects of Kubernetes say: pods as tasks, nodes and their resources, workloads, volumes and claims."""
