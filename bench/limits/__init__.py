"""What limits cost, and how exactly workers share them."""
