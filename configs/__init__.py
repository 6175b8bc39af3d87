"""The configs that come with the project; `default` names and explains every field."""
