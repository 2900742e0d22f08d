output "client_ids" {
  description = "`azure.client_id` of the broker's targets, by identity"
  value       = { for name, identity in azurerm_user_assigned_identity.carnet : name => identity.client_id }
}

output "principal_ids" {
  description = "For role assignments"
  value       = { for name, identity in azurerm_user_assigned_identity.carnet : name => identity.principal_id }
}
