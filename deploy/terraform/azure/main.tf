# Managed identities that the broker acts as, each with the federated credentials that let it.
terraform {
  required_version = ">= 1.6"
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.0"
    }
  }
}

locals {
  credentials = merge([
    for name, identity in var.identities : {
      for target in identity.targets : "${name}/${target}" => { identity = name, target = target }
    }
  ]...)
}

resource "azurerm_user_assigned_identity" "carnet" {
  for_each            = var.identities
  name                = each.key
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

# Entra takes one change of an identity's credentials at a time: with several targets of one identity, apply with
# -parallelism=1.
resource "azurerm_federated_identity_credential" "carnet" {
  for_each            = local.credentials
  name                = "carnet-${each.value.target}"
  resource_group_name = var.resource_group_name
  parent_id           = azurerm_user_assigned_identity.carnet[each.value.identity].id
  issuer              = var.issuer_url
  subject             = "carnet:${each.value.target}"
  audience            = [var.audience]
}
