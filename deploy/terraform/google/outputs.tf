output "audience" {
  description = "`google.audience` of the broker's targets"
  value       = module.condition.audience
  depends_on  = [google_iam_workload_identity_pool_provider.carnet]
}

output "attribute_condition" {
  value = module.condition.condition
}
