output "condition" {
  description = "Never true of an assertion that no rule led to"
  value       = local.condition
  precondition {
    condition     = length(local.condition) <= 4096
    error_message = "The condition has more than the 4096 characters that Google takes: give some of the targets a provider of their own."
  }
}

output "mapping" {
  value = local.mapping
}

output "bindings" {
  description = "By service account and rule: who may become which service account"
  value       = local.bindings
}

output "audience" {
  description = "`google.audience` of the targets"
  value       = "//iam.googleapis.com/${local.pool}/providers/${var.provider_id}"
}
